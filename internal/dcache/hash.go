package dcache

import (
	"bytes"
	"math/bits"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// HashMessage reads the number of hash buckets from the message that the kernel
// logs when it starts: "Dentry cache hash table entries: 4194304 (order: 13, …)".
func HashMessage(text string) (buckets int64, found bool) {
	rest, found := strings.CutPrefix(strings.TrimSpace(text), "Dentry cache hash table entries: ")
	if !found {
		return 0, false
	}
	word, _, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseInt(word, 10, 64)
	return n, err == nil && n > 0
}

// EstimateHash returns the number of buckets that the kernel chooses by itself, for hosts
// whose log no longer says it: one per two pages up to 64 GiB, half and a quarter of that
// per page for each fourfold above, rounded up to a power of two
// (alloc_large_system_hash, mm/mm_init.c). It can be wrong by a factor of two,
// since the kernel counts some pages that are not in MemTotal. The parameter
// dhash_entries on the kernel's command line overrides it.
func EstimateHash(proc string, memory, pageSize int64) int64 {
	if content, err := procfs.Read(filepath.Join(proc, "cmdline")); err == nil {
		if n := hashParameter(content); n > 0 {
			return roundUp(n)
		}
	}
	pages := memory / max(pageSize, 1)
	if pages < 2 {
		return 0
	}
	const scale = 13 // bytes per bucket, as a power of two
	shift := scale - bits.Len64(uint64(pageSize)) + 1
	for most := int64(64<<30) / pageSize; most < pages; most <<= 2 {
		shift++
	}
	if shift < 0 {
		return roundUp(pages << -shift)
	}
	return roundUp(pages >> shift)
}

func hashParameter(commandLine []byte) int64 {
	for word := range bytes.FieldsSeq(commandLine) {
		if value, found := bytes.CutPrefix(word, []byte("dhash_entries=")); found {
			if n, err := strconv.ParseInt(string(value), 0, 64); err == nil && n > 0 && n <= 1<<31 {
				return n
			}
		}
	}
	return 0
}

func roundUp(n int64) int64 { return 1 << bits.Len64(uint64(max(n, 1)-1)) }
