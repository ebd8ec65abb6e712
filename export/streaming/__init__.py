"""Modules that show no state, as references that do: hidden loops, poolings, rolling windows.

Imports run left to right only:

places <- unrolled <- {copying, boundary} <- pooling <- shifting <- single_step <- cut <-
hidden_loop <- torch_finding;
window_call <- windowed
"""
