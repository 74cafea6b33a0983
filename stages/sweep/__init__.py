"""A grid of subjects, motions, prompts, seeds and option values, as artefacts of a project: `videomage sweep`.

grid.py reads GRID.yaml and says which cells it has; variants.py finds each cell's workspace; store.py says what is
there; schedule.py makes jobs of the rest, run.py has them done, by work.py in this process or by on_ray.py in several;
collect.py writes the table. Nothing here keeps a state of its own: the manifests of the artefacts do.
"""
