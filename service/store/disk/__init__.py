"""Sessions in files that all processes of one machine map into memory: the embedded store.

Rules
- A commit writes its record into a free slot, then publishes it by one aligned store of 8 bytes in
  the index, then frees the old slot. Whoever dies between any two instructions leaves the session
  as it was before, or as it is after.
- All writing is done under one `flock`, which the kernel takes back from the dead. The header is
  marked dirty meanwhile: whoever finds it dirty counts again and rebuilds the lists of free slots
  before anything else.
- Reading takes no lock: the index's word is read before and after the slot, and a slot carries its
  key, a sequence number that never comes again, and a checksum over all of it. What changes
  meanwhile is read again under the lock; what is wrong under the lock is never served.
- A file is given its blocks before it is touched: a full disk is an error, never a SIGBUS.
- `process` promises to survive the death of any process, not of the machine: after a reboot that no
  clean close came before, the newest record cannot be known, and all sessions are gone.
- `power` writes slots to the disk before they are published, and after a power cut takes of each
  session the record of the highest sequence number whose checksum is right. A slot that is freed
  loses its number. Before a session's newest slot is freed, that its older ones were is on the
  disk, and before a drop is acknowledged, that too: so nothing comes back, and nothing old.
- Time is the machine's since boot, and an offset in the header that changes at a reboot only, and
  then not back: setting the wall clock ends or prolongs no session.

Order: layout <- mapping, machine <- slots, index, tenants <- recovery, lock <- directory <-
sessions <- table <- store. `sessions` does it row by row, `table` for many rows at once.
"""
