"""What every room stands on: checks, sums, exact numbers, text tables, devices and files.

It knows no gradient and no design.
"""
