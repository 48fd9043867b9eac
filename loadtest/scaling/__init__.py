"""The judge of autoscaling: policies against bursty days in virtual time, beside an oracle (`python -m loadtest.scaling`)."""
