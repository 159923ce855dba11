"""The steps, one file each: what runs inside a Ray task, actor or train worker."""
