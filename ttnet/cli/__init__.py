"""The commands of `ttnet`: fine-tune a transformer with a tensor-train adapter, inspect a saved one."""
