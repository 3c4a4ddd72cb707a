package logsink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/journal"
)

// journalWriter sends each line to systemd's journal with the priority of its level, and to
// fallback what the journal does not take.
type journalWriter struct{ fallback io.Writer }

const journalSocket = "/run/systemd/journal/socket"

func newJournalWriter(fallback io.Writer) (io.Writer, error) {
	conn, err := net.Dial("unixgram", journalSocket)
	if err != nil {
		return nil, fmt.Errorf("can't find journal (%w)", err)
	}
	return journalWriter{fallback}, conn.Close()
}

func (w journalWriter) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		var head struct{ Level, Caller string }
		priority := journal.PriInfo
		if json.Unmarshal(line, &head) == nil { // console lines have no level to read
			switch head.Level {
			case "debug":
				priority = journal.PriDebug
			case "warn":
				priority = journal.PriWarning
			case "error":
				priority = journal.PriErr
			case "dpanic", "panic", "fatal":
				priority = journal.PriCrit
			}
		}
		err := journal.Send(string(bytes.TrimSuffix(line, []byte("\n"))), priority, map[string]string{
			"PACKAGE":           filepath.Dir(head.Caller),
			"SYSLOG_IDENTIFIER": filepath.Base(os.Args[0]),
		})
		if err != nil {
			if _, err := w.fallback.Write(line); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}
