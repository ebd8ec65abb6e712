"""What asks servers over the wire, the same for Carousel alone and for its peers.

network     a model, as an artifact, as stock ONNX and as torch weights; the plain loop
servers     a server's processes: start, count their CPU time, kill, stop
carousel    Carousel as one of them, and the ways in which it can be asked
link        one connection: how a step is asked and answered, the same code for everybody;
            http_links, frame_links and triton_links are its kinds, links their names
job         what a load generator is to do, and what it found
load        the load generator, a process of its own
asked       a closed loop, then open loops at fixed rates
client      the same links, one awaited step at a time
"""
