// Package mailbox lets an input keep all its state to the one goroutine that
// gathers: what other goroutines have for it, they post.
package mailbox

import "sync"

// Mailbox takes what other goroutines have for the one that gathers. Make it
// with [New].
type Mailbox struct {
	mu    sync.Mutex
	posts []func()
	spare []func()      // room for posts, without any
	wake  chan struct{} // holds one token while there may be posts
}

// New returns an empty mailbox.
func New() *Mailbox { return &Mailbox{wake: make(chan struct{}, 1)} }

// Post leaves something to be done. It never blocks.
func (m *Mailbox) Post(do func()) {
	m.mu.Lock()
	m.posts = append(m.posts, do)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Drain does all that was posted.
func (m *Mailbox) Drain() {
	m.mu.Lock()
	posts := m.posts
	if len(posts) == 0 {
		m.mu.Unlock()
		return
	}
	m.posts, m.spare = m.spare, nil
	m.mu.Unlock()
	for _, do := range posts {
		do()
	}
	clear(posts)
	m.mu.Lock()
	m.spare = posts[:0]
	m.mu.Unlock()
}

// Wake is ready to be received from when something may have been posted.
func (m *Mailbox) Wake() <-chan struct{} { return m.wake }
