package nfslock

import "sync"

// mailbox takes what other goroutines have for the one that gathers. All state
// of the input is touched by that one only.
type mailbox struct {
	mu    sync.Mutex
	posts []func()
	wake  chan struct{} // holds one token while there may be posts
}

func newMailbox() *mailbox { return &mailbox{wake: make(chan struct{}, 1)} }

// post leaves something to be done. It never blocks.
func (m *mailbox) post(do func()) {
	m.mu.Lock()
	m.posts = append(m.posts, do)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// open does all that was posted.
func (m *mailbox) open() {
	m.mu.Lock()
	posts := m.posts
	m.posts = nil
	m.mu.Unlock()
	for _, do := range posts {
		do()
	}
}
