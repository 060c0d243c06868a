"""The certificate of live traffic: from the rows of the ledger to the threshold in use."""
