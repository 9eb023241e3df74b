"""Where candidate pairs come from. `url_tables`: tables of URLs and captions in the usual formats."""
