// Govfy judges what tallystick emits with the code of the Go checksum database (golang.org/x/mod/sumdb).
// It reads a JSON list of checks from standard input and writes the list of verdicts: "" accepts, else the reason.
package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type check struct {
	Kind, Key, Origin string
	Note, Proof, Line []byte   // Proof: a whole .tlog-proof file; Line: the entry it is about
	Hashes            [][]byte // inclusion: leaf, root, proof…; consistency: root1, root2, proof…
	Index             int64
	Size, Size1       int64 // consistency: from Size1 to Size
}

func main() {
	var checks []check
	if err := json.NewDecoder(os.Stdin).Decode(&checks); err != nil {
		panic(err)
	}
	verdicts := make([]string, len(checks))
	for i, c := range checks {
		if err := judge(c); err != nil {
			verdicts[i] = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(verdicts); err != nil {
		panic(err)
	}
}

func judge(c check) error {
	switch c.Kind {
	case "note":
		_, err := open(c.Note, c.Key)
		return err
	case "tlog-proof":
		return tlogProof(c)
	}
	h := make([]tlog.Hash, len(c.Hashes))
	for i, raw := range c.Hashes {
		if copy(h[i][:], raw) != tlog.HashSize || len(raw) != tlog.HashSize {
			return fmt.Errorf("a hash of %d bytes", len(raw))
		}
	}
	switch c.Kind {
	case "inclusion":
		return tlog.CheckRecord(tlog.RecordProof(h[2:]), c.Size, h[1], c.Index, h[0])
	case "consistency":
		return tlog.CheckTree(tlog.TreeProof(h[2:]), c.Size, h[1], c.Size1, h[0])
	}
	return fmt.Errorf("kind %q is not known", c.Kind)
}

func open(signed []byte, vkey string) (string, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return "", err
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return "", err
	}
	return opened.Text, nil
}

// tlogProof follows C2SP tlog-proof: index and hashes, an empty line, the checkpoint; its origin; inclusion.
func tlogProof(c check) (err error) {
	head, signed, ok := strings.Cut(string(c.Proof), "\n\n")
	lines := strings.Split(head, "\n")
	if len(lines) > 1 && strings.HasPrefix(lines[1], "extra ") {
		lines = append(lines[:1], lines[2:]...)
	}
	if !ok || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" || !strings.HasPrefix(lines[1], "index ") {
		return fmt.Errorf("not a proof")
	}
	if c.Index, err = number(lines[1][len("index "):]); err != nil {
		return err
	}
	text, err := open([]byte(signed), c.Key)
	if err != nil {
		return err
	}
	// not tlog.ParseTree: it wants the origin of the checksum database
	body := strings.Split(text, "\n")
	if len(body) != 4 || body[0] != c.Origin {
		return fmt.Errorf("not a checkpoint of %q", c.Origin)
	}
	if c.Size, err = number(body[1]); err != nil {
		return err
	}
	leaf := tlog.RecordHash(c.Line)
	c.Kind, c.Hashes = "inclusion", [][]byte{leaf[:]}
	for _, line := range append(body[2:3:3], lines[2:]...) {
		raw, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil {
			return err
		}
		c.Hashes = append(c.Hashes, raw)
	}
	return judge(c)
}

func number(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return n, nil
}
