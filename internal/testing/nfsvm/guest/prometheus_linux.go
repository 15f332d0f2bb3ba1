package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// scrape has the machine outside see, once a second, what Telegraf shows to Prometheus, until
// Telegraf is stopped.
func (r *run) scrape() error {
	c := r.observer.host.plain(self, asFetch, "http://127.0.0.1:9273/metrics")
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("scraping Telegraf: %w", err)
	}
	go func() {
		decoder := json.NewDecoder(bufio.NewReader(out))
		for {
			var scraped string
			err := decoder.Decode(&scraped)
			if err == nil && scraped != "" { // there is nothing before the first gather
				err = r.lab.say(Message{Scraped: scraped})
			}
			if err != nil {
				_ = c.Wait()
				return
			}
		}
	}()
	return nil
}

// fetch prints what is at an address, once a second, until there is nothing any more.
func fetch(address string) error {
	fetched := false
	for ; ; time.Sleep(time.Second) {
		answer, err := http.Get(address)
		switch {
		case err != nil && fetched:
			return err
		case err != nil:
			continue
		}
		content, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
		fetched = true
		text, err := json.Marshal(string(content))
		if err != nil {
			return err
		}
		fmt.Println(string(text))
	}
}

// alert waits until an alert fires in the Prometheus outside.
func (r *run) alert(name string) error {
	if err := r.lab.say(Message{Alert: name}); err != nil {
		return err
	}
	wrong, err := r.lab.hear()
	if err == nil && wrong != "" {
		err = errors.New(wrong)
	}
	return err
}
