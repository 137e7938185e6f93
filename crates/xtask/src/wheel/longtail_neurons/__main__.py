"""`python -m longtail_neurons --where`, or a job: `python -m longtail_neurons ablate-unigram ...`."""

import sys

from longtail_neurons import launch

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments == ["--where"]:
        print(launch.where())
    elif arguments and arguments[0] in launch.JOBS:
        launch.start(arguments[0], arguments[1:])
    else:
        jobs = ", ".join(sorted(launch.JOBS))
        print(f"Usage: python -m longtail_neurons --where\n       python -m longtail_neurons JOB [ARGUMENT]...\n\nJobs: {jobs}")
        sys.exit(0 if arguments in (["-h"], ["--help"]) else 2)
