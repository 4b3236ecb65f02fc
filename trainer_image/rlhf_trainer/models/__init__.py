"""Models and their tokenizers: loading, adapters, scores of tokens and of whole answers, saving."""
