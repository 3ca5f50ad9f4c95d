// compose-check reads a Compose file with the parser that Docker Compose itself uses and says what
// is in it: no container engine is needed. Every depends_on must name a service, and one that is
// waited for to be healthy must have a health check.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

func main() {
	if err := check(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func check(files []string) error {
	options, err := cli.NewProjectOptions(files, cli.WithResolvedPaths(true))
	if err != nil {
		return err
	}
	// Loading validates against the schema of the Compose specification and for consistency.
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	for _, name := range project.ServiceNames() {
		service := project.Services[name]
		for wanted, dependency := range service.DependsOn {
			other, known := project.Services[wanted]
			if !known {
				return fmt.Errorf("%s depends on %s, which is not there", name, wanted)
			}
			if dependency.Condition == types.ServiceConditionHealthy && other.HealthCheck == nil {
				return fmt.Errorf("%s waits for %s to be healthy, which has no health check", name, wanted)
			}
		}
		fmt.Printf("%-10s %-26s %v\n", name, service.Image, service.Command)
	}
	return nil
}
