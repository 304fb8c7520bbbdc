"""Image datasets: each file lists samples of one kind of source, in a fixed order.

And reads one at a time.
"""
