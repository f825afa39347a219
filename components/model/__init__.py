"""A model at work: loading, chat templates, packing, throughput."""
