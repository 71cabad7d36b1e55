"""The 36 claims and questions of the source pages, in order of number, each settled by library code and exact numbers.

The docstring of a test is the sentence in our own words and the verdict; ``README.md`` has them as a table, with the
figure of each. S0, S1 and S2 are the three pages: a proof for one example, a question on averaged errors, a question on
averaged gradients.
"""
