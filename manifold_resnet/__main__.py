from manifold_resnet.cli import main

raise SystemExit(main())
