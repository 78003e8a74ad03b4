"""The client side of the Hugging Face Hub (or any hub that speaks its protocol)."""
