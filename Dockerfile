# The image of the agent, and the root filesystem of the managed plugin: the
# static binary and nothing else. `make build` makes it; `make plugin` makes the
# plugin without building an image.
FROM scratch
COPY bin/carrick /carrick
ENTRYPOINT ["/carrick"]
CMD ["agent"]
