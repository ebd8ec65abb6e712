"""`python -m benchmarks.scaling`: what grows with the sessions and the years, and what does not.

In one run: the CPU time of a step by how long its session has lived and by how many others sleep
in the store; what sleeping sessions take of disk and memory, and what they cost when they are
swept, counted, expired, and opened again; the same over a real server, way by way, with the bytes
of a step on the network; Redis; and the time from `bentoml serve` to its first answer.

CPU time only, as a rule: who else uses the machine adds to it by the caches and the memory that he
takes. What is compared takes turns in one run, round after round; the least of the rounds is shown.

Order: sleepers, models <- in_process, upkeep, served, redis_side <- findings <- report, picture
<- __main__. `benchmarks.capacity` predicts from these figures, and the report shows by how much it
was wrong.
"""
