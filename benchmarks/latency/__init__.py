"""`python -m benchmarks.latency`: what a step takes, in process and over the wire, and why.

point       what was measured, the same for every part: Model, Point, Findings
part        what a part of the run is asked: how much it has to do, and to do it
made        the models made for the purpose, exported for real, kept in a folder
in_process  the part without a network: variants, peers and floors take turns
wire        the part from socket to socket
advisor     points -> sentences
report      points -> tables, JSON, pictures, one page
"""
