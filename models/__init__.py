"""Network definitions that torchvision does not have; `train` holds their recipes."""
