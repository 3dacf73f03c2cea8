"""A recorded workload once more in virtual time, by the placement that serves live clusters."""
