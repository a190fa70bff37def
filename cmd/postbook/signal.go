package main

import "syscall"

// nullSignal asks whether a process is there, and does nothing to it.
const nullSignal = syscall.Signal(0)
