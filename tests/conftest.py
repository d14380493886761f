"""Settings every test shares."""

from hypothesis import settings

# derandomised: a red test stays red when run again
settings.register_profile("default", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("default")
