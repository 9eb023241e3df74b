"""What the packages agree on: row formats, manifests, storage, configuration, command lines, errors. See README.md."""
