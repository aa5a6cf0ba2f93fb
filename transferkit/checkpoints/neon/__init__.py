"""Model files of Nervana's neon, the library in which the method of this package was first built."""
