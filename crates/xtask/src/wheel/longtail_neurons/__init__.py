"""Finds and ablates the neurons of language models that change the probability of rare tokens.

The jobs are programs, not Python: this package starts them (`ablate-unigram --help`), with the libtorch of the torch that is installed
in the same environment. `python -m longtail_neurons --where` says where everything is.
"""
