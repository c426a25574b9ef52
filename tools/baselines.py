#!/usr/bin/env python3
"""What simple methods pay for the last 5 % of a text, given everything before it.

usage: tools/baselines.py FILE

xz -9     growth of the archive when the last 5 % are appended
order-k   byte model: counts of every context of 0 .. k bytes, mixed from short to long by Witten and
          Bell's rule, learning on while it reads the last 5 %
"""
import collections
import lzma
import math
import sys


def xz_bits(data, begin):
    size = lambda part: len(lzma.compress(part, preset=9))
    return 8 * (size(data) - size(data[:begin])) / (len(data) - begin)


def order_bits(data, begin, order):
    counts = collections.defaultdict(collections.Counter)
    totals = collections.Counter()
    bits = 0.0
    for i, byte in enumerate(data):
        contexts = [data[i - k : i] for k in range(min(order, i) + 1)]
        if i >= begin:
            p = 1 / 256
            for context in contexts:
                if total := totals[context]:
                    seen = counts[context]
                    p = (seen[byte] + len(seen) * p) / (total + len(seen))
            bits -= math.log2(p)
        for context in contexts:
            counts[context][byte] += 1
            totals[context] += 1
    return bits / (len(data) - begin)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    data = open(sys.argv[1], "rb").read()
    begin = len(data) * 95 // 100
    print(f"last {len(data) - begin:,} of {len(data):,} bytes, bits per byte")
    print(f"xz -9    {xz_bits(data, begin):.3f}")
    for order in (2, 5):
        print(f"order-{order}  {order_bits(data, begin, order):.3f}")


main()
