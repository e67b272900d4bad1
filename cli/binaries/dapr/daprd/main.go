// daprd with the stable components, as Dapr builds it, and with those of the conversation API, which Dapr keeps behind a
// tag (allcomponents) that Go 1.26 cannot build: an assembly file of Pulsar's driver.
package main

import (
	"github.com/dapr/components-contrib/conversation/anthropic"
	"github.com/dapr/components-contrib/conversation/echo"
	"github.com/dapr/components-contrib/conversation/ollama"
	"github.com/dapr/components-contrib/conversation/openai"
	"github.com/dapr/dapr/cmd/daprd/app"
	"github.com/dapr/dapr/pkg/components/conversation"
)

func main() {
	conversation.DefaultRegistry.RegisterComponent(anthropic.NewAnthropic, "anthropic")
	conversation.DefaultRegistry.RegisterComponent(echo.NewEcho, "echo")
	conversation.DefaultRegistry.RegisterComponent(ollama.NewOllama, "ollama")
	conversation.DefaultRegistry.RegisterComponent(openai.NewOpenAI, "openai")
	app.Run()
}
