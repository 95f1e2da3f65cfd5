"""Error-recycling fine-tuning (ERFT): a LoRA that corrects the model's own errors.

``config`` says what a training is, ``recipes`` holds the published ones, ``methods`` the step, ``trainer`` the loop.
"""
