"""Where candidate pairs come from. `files`: which files, `rows`: what is in them; one module for each kind of file beside."""
