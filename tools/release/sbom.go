package main

import (
	"io"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/CycloneDX/cyclonedx-gomod/pkg/generate/bin"
	"github.com/rs/zerolog"
)

// boms writes the SBOM of each binary in CycloneDX's JSON: its modules with their checksums,
// as Go recorded them in the binary, and the standard library. It has no serial number, and
// the commit's date, so that it can be reproduced.
func (r release) boms(b build) error {
	for _, name := range b.names() {
		generator, err := bin.NewGenerator(b.path(name),
			bin.WithIncludeStdlib(true), bin.WithVersionOverride(r.version), bin.WithLogger(zerolog.Nop()))
		if err != nil {
			return err
		}
		bom, err := generator.Generate()
		if err != nil {
			return err
		}
		bom.Metadata.Timestamp = r.date.Format(time.RFC3339)
		file := name + "_" + r.plain() + "_" + b.os + "_" + b.arch + ".cdx.json"
		if err := create(r.path(file), func(w io.Writer) error {
			return cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom)
		}); err != nil {
			return err
		}
	}
	return nil
}
