"""The layout of keys and values in pages, for both backends.

A page holds PAGE_TOKENS tokens of all key heads of one layer: keys and values are [pages, Hkv, PAGE_TOKENS, D]. Token t of
row r lies in page page_table[r, t // PAGE_TOKENS] at slot t % PAGE_TOKENS.
"""

PAGE_TOKENS = 64
SPLIT_TOKENS = 512  # tokens whose attention one program computes: fixed, so that bits do not depend on the batch
HEAD_SIZES = (16, 32, 64, 128, 256)  # that the Triton kernels take
LARGEST_GROUP = 16  # query heads a key head that the Triton kernels take
