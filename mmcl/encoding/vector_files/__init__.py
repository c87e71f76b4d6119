"""Vectors in the files of others: ``.npy``, Parquet and clip-retrieval's folders, read and written block by block."""
