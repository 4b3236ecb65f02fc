-- Which actions make sense now.
local status = obj.status or {}

local failed = status.prepare ~= nil and status.prepare.phase == "Failed"
for _, stage in pairs(status.stages or {}) do
  failed = failed or stage.phase == "Failed"
end

local approval, done = false, false
for _, condition in ipairs(status.conditions or {}) do
  local holds = condition.status == "True"
  approval = approval or (condition.type == "ApprovalNeeded" and holds)
  done = done or (condition.type == "Ready" and holds)
end

local suspended = obj.spec.suspend == true
return {
  suspend = { disabled = suspended or done, iconClass = "fa fa-fw fa-pause" },
  resume = { disabled = not suspended, iconClass = "fa fa-fw fa-play" },
  approve = { disabled = not approval, iconClass = "fa fa-fw fa-check" },
  retry = { disabled = not failed, iconClass = "fa fa-fw fa-redo" },
}
