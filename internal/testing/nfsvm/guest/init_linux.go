// Package guest is the side of the NFS scenarios that runs in the virtual
// machine, as its init: a server, a second one that stays healthy, and two
// clients, each in namespaces of its own.
package guest

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm/agent"
)

// What the program is started as; the first argument.
const (
	asHost   = "nfsvm-host"
	asTry    = "nfsvm-try"
	asHold   = "nfsvm-hold"
	asDirty  = "nfsvm-dirty"
	asProxy  = "nfsvm-proxy"
	asFetch  = "nfsvm-fetch"
	asRunner = "nfsvm-runner"
	self     = "/init"
)

// Main runs the part of the guest this process was started for, and returns if
// it is none: then this is the machine outside.
func Main() {
	role := ""
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	if os.Getpid() == 1 {
		initialize()
		return
	}
	var err error
	switch role {
	case asRunner:
		err = serve()
	case asHost:
		err = beHost(os.Args[2], os.Args[3])
	case asTry:
		err = try(os.Args[2], os.Args[3])
	case asHold:
		err = hold(os.Args[2], os.Args[3])
	case asProxy:
		err = serveProxy(os.Args[2])
	case asFetch:
		err = fetch(os.Args[2])
	case asDirty:
		err = dirty(os.Args[2])
	default:
		return
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// initialize is process 1: it starts the runner.
func initialize() {
	os.Setenv("PATH", agent.Path)
	if err := agent.MountSystem("/"); err != nil {
		fmt.Println(err)
	}
	agent.Init(self, asRunner)
}

// A Message goes to the machine outside: a scenario's result; or it will suspend and
// must be woken after some time, and is awake again; or what Prometheus is to scrape, or an
// alert that is to fire there, which is answered by what is wrong, or nothing.
type Message struct {
	Result    *report.Result `json:"result,omitempty"`
	WakeAfter time.Duration  `json:"wake_after,omitempty"`
	Awake     bool           `json:"awake,omitempty"`
	Scraped   string         `json:"scraped,omitempty"`
	Alert     string         `json:"alert,omitempty"`
}

// serve runs the scenarios whose names come over the line to the machine outside.
func serve() error {
	line, err := agent.Open()
	if err != nil {
		return err
	}
	defer line.Close()
	var sending sync.Mutex
	lab, err := newLab(func(m Message) error {
		sending.Lock()
		defer sending.Unlock()
		return line.Send(m)
	})
	if err := errors.Join(err, line.Ready(err)); err != nil {
		return err
	}
	lab.hear = func() (answer string, err error) {
		err = line.Receive(&answer)
		return answer, err
	}
	for {
		var name string
		if err := line.Receive(&name); err != nil {
			return err
		}
		if err := lab.say(Message{Result: lab.run(name)}); err != nil {
			return err
		}
	}
}
