"""One Kubeflow component per stage, each a thin shell around the core library."""
