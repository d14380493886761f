from manifold_resnet.cli import main

if __name__ == "__main__":  # processes that a training starts import this file again
    raise SystemExit(main())
