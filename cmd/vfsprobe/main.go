package main

import _ "github.com/vfsprobe/vfsprobe/internal/prober/forkserver"

func main() { println("main") }
