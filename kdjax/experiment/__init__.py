"""From a config to trained stages: the graph, its folders, the bank, the results."""
