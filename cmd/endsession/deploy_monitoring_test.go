package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// measured is what docs/telemetry.md says of a metric.
type measured struct {
	labels []string
	// values are those of the labels that are closed sets.
	values map[string][]string
}

// documentedMetrics reads the tables of docs/telemetry.md, which TestMetricsAreThoseDocumented compares with a gateway. A
// histogram is there as the three series that it is.
func documentedMetrics(t *testing.T) map[string]measured {
	t.Helper()
	page := readText(t, "docs/telemetry.md")
	word := regexp.MustCompile("`([^`]+)`")
	words := func(cell string) (list []string) {
		for _, m := range word.FindAllStringSubmatch(cell, -1) {
			list = append(list, m[1])
		}
		return list
	}
	metrics := map[string]measured{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(endsession_\\w+)` \\| (\\w+) \\|([^|]*)\\|").FindAllStringSubmatch(page, -1) {
		name, labels := m[1], words(m[3])
		if m[2] != "histogram" {
			metrics[name] = measured{labels, map[string][]string{}}
			continue
		}
		for suffix, more := range map[string][]string{"_bucket": {"le"}, "_count": nil, "_sum": nil} {
			metrics[name+suffix] = measured{slices.Concat(labels, more), map[string][]string{}}
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (all|`endsession_\\w+`) \\|(.*)\\|$").FindAllStringSubmatch(page, -1) {
		label, of, cell := m[1], strings.Trim(m[2], "`"), m[3]
		values := words(cell)
		if strings.Contains(cell, "…") || strings.Contains(cell, "](") {
			continue // not a closed set, or one that is written elsewhere
		}
		for name, metric := range metrics {
			if base := regexp.MustCompile("_(bucket|count|sum)$").ReplaceAllString(name, ""); slices.Contains(metric.labels, label) && (of == "all" || of == name || of == base) {
				metric.values[label] = values
			}
		}
	}
	if len(metrics) < 30 {
		t.Fatalf("docs/telemetry.md has only %d series", len(metrics))
	}
	return metrics
}

// theirs are the labels that Prometheus adds.
var theirs = []string{"job", "instance"}

// judgeExpression compares an expression with the metrics that there are: names, labels, and values of labels. It returns
// the labels that the expression's result can have.
func judgeExpression(t *testing.T, where, expr string, metrics map[string]measured) (labels []string) {
	t.Helper()
	found := regexp.MustCompile(`\b(endsession_\w+)(\{[^}]*\})?`).FindAllStringSubmatch(expr, -1)
	var all []string
	for _, m := range found {
		metric, known := metrics[m[1]]
		if !known {
			t.Errorf("%s: there is no metric %s", where, m[1])
			continue
		}
		all = append(all, metric.labels...)
		for _, c := range regexp.MustCompile(`(\w+)(=~|!~|!=|=)"([^"]*)"`).FindAllStringSubmatch(m[2], -1) {
			label, values := c[1], []string{c[3]}
			if strings.HasSuffix(c[2], "~") {
				values = strings.Split(c[3], "|")
			}
			if !slices.Contains(metric.labels, label) && !slices.Contains(theirs, label) {
				t.Errorf("%s: %s has no label %s", where, m[1], label)
			}
			for _, v := range values {
				if set := metric.values[label]; set != nil && !strings.ContainsAny(v, "$.*") && !slices.Contains(set, v) {
					t.Errorf("%s: %s=%q is never said of %s", where, label, v, m[1])
				}
			}
		}
	}
	groups := regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(expr, -1)
	if len(found) > 0 {
		for _, g := range groups {
			for label := range strings.SplitSeq(g[1], ", ") {
				if !slices.Contains(all, label) && !slices.Contains(theirs, label) {
					t.Errorf("%s: nothing in the expression has the label %s", where, label)
				}
				labels = append(labels, label)
			}
		}
	}
	if len(groups) == 0 {
		labels = slices.Concat(all, theirs)
	}
	return labels
}

// alert is one of the alert rules.
type alert struct {
	Alert               string
	Expr                string
	For                 string
	Labels, Annotations map[string]string
}

func alerts(t *testing.T) (list []alert) {
	t.Helper()
	var file struct{ Groups []struct{ Rules []alert } }
	if err := yaml.Unmarshal([]byte(readText(t, "deploy/prometheus/endsession.rules.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		list = append(list, g.Rules...)
	}
	if len(list) < 15 {
		t.Fatalf("%d alerts", len(list))
	}
	return list
}

// TestAlerts: every alert is about metrics that there are, says what is wrong and where to read on, and has a case in which
// it fires and one in which it does not, which promtool carries out.
func TestAlerts(t *testing.T) {
	t.Parallel()
	metrics := documentedMetrics(t)
	var cases struct {
		Tests []struct {
			Name  string
			Evals []struct {
				Expr    string
				Samples []any `yaml:"exp_samples"`
			} `yaml:"promql_expr_test"`
		}
	}
	if err := yaml.Unmarshal([]byte(readText(t, "deploy/prometheus/endsession.test.yaml")), &cases); err != nil {
		t.Fatal(err)
	}
	fires, rests := map[string]bool{}, map[string]bool{}
	for _, c := range cases.Tests {
		for _, e := range c.Evals {
			if want := `ALERTS{alertname="` + c.Name + `",alertstate="firing"}`; e.Expr != want {
				t.Errorf("%s: asks for %s", c.Name, e.Expr)
			}
			fires[c.Name] = fires[c.Name] || len(e.Samples) > 0
			rests[c.Name] = rests[c.Name] || len(e.Samples) == 0
		}
	}
	headings := anchors(readText(t, "docs/operations.md"))
	for _, a := range alerts(t) {
		if !fires[a.Alert] || !rests[a.Alert] {
			t.Errorf("%s: a case in which it fires: %t, and one in which it does not: %t", a.Alert, fires[a.Alert], rests[a.Alert])
		}
		labels := judgeExpression(t, a.Alert, a.Expr, metrics)
		if !slices.Contains([]string{"critical", "warning", "info"}, a.Labels["severity"]) {
			t.Errorf("%s: severity %q", a.Alert, a.Labels["severity"])
		}
		for _, name := range []string{"summary", "description", "runbook_url"} {
			text := a.Annotations[name]
			if text == "" {
				t.Errorf("%s has no %s", a.Alert, name)
			}
			for _, m := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(text, -1) {
				if !slices.Contains(labels, m[1]) {
					t.Errorf("%s: the %s names the label %s, which is gone", a.Alert, name, m[1])
				}
			}
		}
		heading, ok := strings.CutPrefix(a.Annotations["runbook_url"], "https://github.com/endsession/endsession/blob/main/docs/operations.md#")
		if !ok || !slices.Contains(headings, heading) {
			t.Errorf("%s: %s leads to no heading", a.Alert, a.Annotations["runbook_url"])
		}
	}

	needTool(t, "promtool")
	dir := filepath.Join(root, "deploy/prometheus")
	do(t, dir, nil, "promtool", "check", "rules", "endsession.rules.yaml")
	do(t, dir, nil, "promtool", "test", "rules", "endsession.test.yaml")
}

// TestDashboard: every panel asks Prometheus for what there is, in expressions that Prometheus understands.
func TestDashboard(t *testing.T) {
	t.Parallel()
	metrics := documentedMetrics(t)
	type panel struct {
		ID          int
		Type, Title string
		Targets     []struct{ Expr, LegendFormat string }
		GridPos     struct{ X, Y, W, H int }
	}
	var board struct {
		UID, Title string
		Panels     []panel
		Templating struct{ List []struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(readText(t, "deploy/grafana/endsession.json")), &board); err != nil {
		t.Fatal(err)
	}
	variables := []string{"__rate_interval"}
	for _, v := range board.Templating.List {
		variables = append(variables, v.Name)
	}
	variable := regexp.MustCompile(`\$\{?(\w+)\}?`)
	used, ids := map[string]bool{}, map[int]bool{}
	type rule struct {
		Record, Expr string
	}
	var rules []rule
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" || p.GridPos.X+p.GridPos.W > 24 || (p.Type != "row") != (len(p.Targets) > 0) {
			t.Errorf("panel %d %q is not one", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			where := fmt.Sprintf("%s: %s", p.Title, target.Expr)
			labels := judgeExpression(t, where, target.Expr, metrics)
			for _, m := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if !slices.Contains(labels, m[1]) {
					t.Errorf("%s: the legend names the label %s, which is gone", where, m[1])
				}
			}
			for _, m := range variable.FindAllStringSubmatch(target.Expr, -1) {
				if !slices.Contains(variables, m[1]) {
					t.Errorf("%s: there is no variable %s", where, m[1])
				}
			}
			for _, m := range regexp.MustCompile(`endsession_\w+`).FindAllString(target.Expr, -1) {
				used[regexp.MustCompile("_(bucket|count|sum)$").ReplaceAllString(m, "")] = true
			}
			filled := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
			rules = append(rules, rule{fmt.Sprintf("panel:%d", len(rules)), variable.ReplaceAllString(filled, "x")})
		}
	}
	if len(used) < 15 {
		t.Errorf("the board shows only %v", slices.Sorted(maps.Keys(used)))
	}

	needTool(t, "promtool")
	file := filepath.Join(t.TempDir(), "board.yaml")
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "board", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	do(t, ".", nil, "promtool", "check", "rules", file)
}
