"""The commands of `ttnet`: fine-tune a pretrained transformer with a tensor-train adapter, look at a saved one."""
