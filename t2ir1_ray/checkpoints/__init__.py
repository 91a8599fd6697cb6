"""Reading checkpoint folders, of the policy and of every expert: which files count, and that they are what was loaded.

`folder` finds a folder and reads its configuration, `weights` says which files hold its weights, `tokenizer` opens its
tokenizer as `tokenizer.json` says.
"""
