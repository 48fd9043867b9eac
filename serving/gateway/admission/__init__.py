"""Admission: may this call run now?

The gate bounds open requests, the waiting room holds calls until a replica of their model is ready, the line until there is room
on one, and a Ticket is the only way from there to a replica. Every refusal leaves one typed `Decision` in the call's record.
"""
