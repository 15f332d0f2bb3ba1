// s3 is an S3 server for tests, which keeps one bucket in memory:
//
//	s3 ADDRESS:PORT BUCKET FILE
//
// It takes requests that are signed with the access key in FILE, which is read each time, and
// refuses others as S3 does. Signatures are not verified.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"regexp"
	"strings"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: s3 ADDRESS:PORT BUCKET FILE")
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
}

func serve(address, bucket, keyFile string) error {
	backend := s3mem.New()
	if err := backend.CreateBucket(bucket); err != nil {
		return fmt.Errorf("making the bucket %s: %w", bucket, err)
	}
	server := &http.Server{Addr: address, Handler: refuseOthers(keyFile, gofakes3.New(backend).Server())}
	return server.ListenAndServe()
}

// credential is the access key in an Authorization header of signature version 4 or 2.
var credential = regexp.MustCompile(`Credential=([^/]+)/|^AWS ([^:]+):`)

// refuseOthers passes on the requests which have the access key in the file.
func refuseOthers(keyFile string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, err := os.ReadFile(keyFile)
		found := credential.FindStringSubmatch(r.Header.Get("Authorization"))
		if err != nil || found == nil || found[1]+found[2] != strings.TrimSpace(string(key)) {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusForbidden)
			_, _ = fmt.Fprint(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>InvalidAccessKeyId</Code><Message>The AWS Access Key Id you provided does not exist in our records.</Message></Error>`)
			return
		}
		next.ServeHTTP(w, r)
	})
}
