"""A model at work: loading it, chat templates, packing, throughput."""
