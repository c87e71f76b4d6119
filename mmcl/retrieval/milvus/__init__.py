"""An index in Milvus: on a server, on a cluster of them, or in a local file by Milvus Lite."""
